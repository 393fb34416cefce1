"""The methods, found by name: the built-in ones, and those that other packages add.

A package adds a method by an entry point in the group `truedepth.methods` whose name is the method's name:

    [project.entry-points."truedepth.methods"]
    reverse = "truedepth_reverse_method:Reverse"

Nothing is imported before a method is asked for. An error while importing a method is not hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from truedepth.errors import MethodError

if TYPE_CHECKING:
    from truedepth.methods.base import Method

ENTRY_POINT_GROUP = "truedepth.methods"

_BUILT_IN = tuple(
    EntryPoint(path.split(":")[0].replace("_", "-"), f"truedepth.methods.{path}", ENTRY_POINT_GROUP)
    for path in (
        "layer_parallel:LayerParallel",
        "unified_skipping:UnifiedSkipping",
        "early_exit:EarlyExit",
        "block_influence:BlockInfluence",
        "angular_distance:AngularDistance",
        "greedy_removal:GreedyRemoval",
        "shapley:Shapley",
        "shuffle:Shuffle",
        "merge:Merge",
        "prune_range:PruneRange",
        "parallel_range:ParallelRange",
    )
)


def all_methods() -> dict[str, type[Method]]:
    """Every method by name, the built-in ones first.

    Raises:
        MethodError: two methods have one name, or an entry point is not a method.
    """
    return {name: _load(point) for name, point in _points().items()}


def get_method(name: str) -> type[Method]:
    """The method called `name`. Of the third-party methods, only this one is imported.

    Raises:
        MethodError: there is no such method, two methods have one name, or the entry point is not a method.
    """
    from truedepth.methods.hints import did_you_mean

    points = _points()
    if name in points:
        return _load(points[name])
    raise MethodError(f"there is no method '{name}'{did_you_mean(name, points)}; the methods are: {', '.join(points)}")


def build_method(name: str, parameters: Mapping[str, Any]) -> Method:
    """The method called `name` with its parameters, as a recipe or the command line gives them.

    Raises:
        MethodError: there is no such method, or a parameter is unknown, missing, of the wrong type or out of
            range.
    """
    return get_method(name)(**parameters)


def _points() -> dict[str, EntryPoint]:
    """The entry points of the built-in methods, and then of other packages, by name; none of them imported."""
    found: dict[str, EntryPoint] = {}
    for point in (*_BUILT_IN, *entry_points(group=ENTRY_POINT_GROUP)):
        if point.name in found:
            raise MethodError(
                f"two methods are called '{point.name}': one of {_owner(found[point.name])} and one of "
                f"{_owner(point)}; uninstall or rename one of them"
            )
        found[point.name] = point
    return found


def _load(point: EntryPoint) -> type[Method]:
    from truedepth.methods.base import EvidenceMethod, LayerMethod

    method = point.load()
    if not (isinstance(method, type) and issubclass(method, LayerMethod | EvidenceMethod)):
        raise MethodError(
            f"entry point '{point.name}' of {_owner(point)} is not a method; it must name a class derived "
            "from truedepth.methods.LayerMethod or EvidenceMethod"
        )
    own_name = getattr(method, "name", None)
    if own_name != point.name:
        raise MethodError(
            f"entry point '{point.name}' of {_owner(point)} gives a method whose name is {own_name!r}; "
            "give both the same name"
        )
    return method


def _owner(point: EntryPoint) -> str:
    if point in _BUILT_IN:
        return f"truedepth itself ({point.module})"
    package = f"package {point.dist.name} {point.dist.version}" if point.dist else "an unknown package"
    return f"{package} ({point.value})"
