"""What became of every preference record: kept, or left out for a counted cause with its first place."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ABSOLUTE = re.compile(r"^/.*/(?=[^/]+ (?:line|element|row) \d)")  # the folder in "/folder/file.jsonl line 3"

CAUSES = {  # why a record gives no pair, in the words of the messages
    "unknown_role": "with a role that is not in the table of roles",
    "not_text": "with content that is not text",
    "unread_context": "with context that no shape reads",
    "two_prompts": "with two prompts that differ",
    "no_common_prompt": "without an assistant's turn at which both answers part",
    "empty_prompt": "with an empty prompt",
    "empty_answer": "with an empty answer",
    "equal_answers": "with equal answers",
    "duplicates": "that are the same as an earlier one",
    "over_limit": "over the limit preferences.pairs",
}


@dataclass
class Account:
    """Records in = pairs kept + records left out, by cause. `check` holds it."""

    records: int = 0
    kept: Counter[str] = field(default_factory=Counter)  # pairs by split
    kinds: Counter[str] = field(default_factory=Counter)  # pairs by kind
    left_out: Counter[str] = field(default_factory=Counter)  # records by cause
    first: dict[str, str] = field(default_factory=dict)  # for each cause the place of its first record
    notes: Counter[str] = field(default_factory=Counter)  # what a person should know of records that were kept
    unread: dict[str, None] = field(default_factory=dict)  # columns that no shape reads, in order

    def leave_out(self, cause: str, where: str, count: int = 1) -> None:
        if cause not in CAUSES:
            raise KeyError(cause)
        self.left_out[cause] += count
        self.first.setdefault(cause, where)

    def check(self) -> None:
        """Raises RuntimeError, a bug, where a record is neither kept nor counted."""
        found = self.kept.total() + self.left_out.total()
        if self.records != found:
            raise RuntimeError(f"{self.records} preference records were read, but {found} are accounted for")

    def causes(self) -> str:
        """One line of all causes with their counts and first places."""
        return "; ".join(
            f"{count:,} {CAUSES[cause]}" + (f" (first: {self.first[cause]})" if self.first[cause] else "")
            for cause, count in self.left_out.most_common()
        )

    def lines(self) -> list[str]:
        """The account for a person."""
        kept = ", ".join(f"{count:,} {split}" for split, count in sorted(self.kept.items(), reverse=True))
        lines = [f"preferences: {self.records:,} records give {self.kept.total():,} pairs ({kept or 'none'})"]
        if self.left_out:
            lines.append(f"left out: {self.causes()}")
        if over := self.left_out["over_limit"]:
            lines.append(f"preferences.pairs leaves out {over:,} pairs and keeps an even sample; 0 keeps all")
        lines += [f"note: {count:,} {note}" for note, count in self.notes.items()]
        if self.unread:
            lines.append(f"columns that are not read: {', '.join(self.unread)}")
        if self.kinds:
            lines.append("kinds: " + ", ".join(f"{kind} {count:,}" for kind, count in self.kinds.items()))
        return lines

    def counts(self) -> dict[str, int]:
        """The numbers, every cause among them."""
        return {"records": self.records, **self.kept, **{cause: self.left_out[cause] for cause in CAUSES}}

    def figures(self) -> Mapping[str, Any]:
        """The whole account for a JSON file, without the folders of this machine."""
        told: dict[str, Any] = {**self.counts(), "kinds": dict(self.kinds), "notes": dict(self.notes)}
        first = {cause: ABSOLUTE.sub("", where) for cause, where in self.first.items()}
        return {**told, "first_left_out": first, "columns_not_read": list(self.unread)}
