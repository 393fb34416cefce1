"""Where a draft agrees with its target, and what that means for rounds of drafting."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Agreement:
    """Where a draft's most likely token is the target's, given the target's own tokens before it.

    Attributes:
        rows: one string a text, with a 1 for each token where they agree and a 0 for each where they do not.
    """

    rows: tuple[str, ...]

    @property
    def share(self) -> float:
        """The share of tokens where they agree: the acceptance of a token whose predecessors were accepted."""
        return sum(row.count("1") for row in self.rows) / sum(map(len, self.rows))

    def rounds(self, num_speculative_tokens: int) -> list[int]:
        """How many tokens each round takes when the texts are written with that many drafted tokens a round.

        A round begins after the token that the target added to the last one. Rounds that the end of a text would
        cut short are left out, whatever they would have taken.
        """
        taken = []
        for row in self.rows:
            at = 0
            while at + num_speculative_tokens <= len(row):
                refused = row.find("0", at, at + num_speculative_tokens)
                taken.append(num_speculative_tokens if refused < 0 else refused - at)
                at += taken[-1] + 1
        return taken
