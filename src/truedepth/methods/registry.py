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


def all_methods() -> dict[str, type[Method]]:
    """Every method by name, the built-in ones first.

    Raises:
        MethodError: two methods have one name, or an entry point is not a method.
    """
    methods = _built_in_methods()
    return methods | {name: _load(point) for name, point in _third_party(methods).items()}


def get_method(name: str) -> type[Method]:
    """The method called `name`. Of the third-party methods, only this one is imported.

    Raises:
        MethodError: there is no such method, two methods have one name, or the entry point is not a method.
    """
    from truedepth.methods.hints import did_you_mean

    methods = _built_in_methods()
    third_party = _third_party(methods)
    if name in methods:
        return methods[name]
    if name in third_party:
        return _load(third_party[name])
    names = [*methods, *third_party]
    raise MethodError(f"there is no method '{name}'{did_you_mean(name, names)}; the methods are: {', '.join(names)}")


def build_method(name: str, parameters: Mapping[str, Any]) -> Method:
    """The method called `name` with its parameters, as a recipe or the command line gives them.

    Raises:
        MethodError: there is no such method, or a parameter is unknown, missing, of the wrong type or out of
            range.
    """
    return get_method(name)(**parameters)


def _built_in_methods() -> dict[str, type[Method]]:
    from truedepth.methods.angular_distance import AngularDistance
    from truedepth.methods.block_influence import BlockInfluence
    from truedepth.methods.early_exit import EarlyExit
    from truedepth.methods.greedy_removal import GreedyRemoval
    from truedepth.methods.layer_parallel import LayerParallel
    from truedepth.methods.merge import Merge
    from truedepth.methods.parallel_range import ParallelRange
    from truedepth.methods.prune_range import PruneRange
    from truedepth.methods.shapley import Shapley
    from truedepth.methods.shuffle import Shuffle
    from truedepth.methods.unified_skipping import UnifiedSkipping

    methods: tuple[type[Method], ...] = (
        LayerParallel,
        UnifiedSkipping,
        EarlyExit,
        BlockInfluence,
        AngularDistance,
        GreedyRemoval,
        Shapley,
        Shuffle,
        Merge,
        PruneRange,
        ParallelRange,
    )
    return {method.name: method for method in methods}


def _third_party(built_in: Mapping[str, type[Method]]) -> dict[str, EntryPoint]:
    """The entry points of other packages by name, none of them imported."""
    owners = {name: f"truedepth itself ({method.__module__})" for name, method in built_in.items()}
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        owner = _owner(point)
        if point.name in owners:
            raise MethodError(
                f"two methods are called '{point.name}': one of {owners[point.name]} and one of {owner}; "
                "uninstall or rename one of them"
            )
        owners[point.name] = owner
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
    package = f"package {point.dist.name} {point.dist.version}" if point.dist else "an unknown package"
    return f"{package} ({point.value})"
