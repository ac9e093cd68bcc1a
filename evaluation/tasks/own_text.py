"""``file:PATH``: the perplexity of a text of the user's own, in windows of --ppl_window tokens."""

from dataclasses import dataclass, replace

from core.calibration import OWN
from core.errors import UserError
from evaluation.data.own_text import own_rows
from evaluation.data.rows import Source
from evaluation.data.splits import Split
from evaluation.tasks.base import register
from evaluation.tasks.perplexity import Perplexity


@dataclass(frozen=True)
class OwnText(Perplexity):
    """A text by its path; without one it is no data set."""

    path: str = ""
    general_text: str | None = "c4"

    def part(self, name: str) -> "OwnText":
        """The data set of the text at a path."""
        return replace(self, name=OWN + name, path=name)

    def split(self, load, calib: int, evaluate: int, seed: int) -> Split:
        """All documents, whatever the data source of others is."""
        if not self.path:
            raise UserError("--dataset file is no data set by itself; name a file, such as file:book.txt")
        return Split((), tuple(self.make_doc(row) for row in own_rows(self.path)))


register(OwnText("file", Source(hub_id=None, hub_config=None, split="", folder="file", embedded=None,
                                fields={"text": "text"})))
