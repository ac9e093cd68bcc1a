"""Spider: a question about a database becomes an SQL query; zero-shot from the schema, as TaCQ asks it.

    Database {id} has these tables:
    {table}({column} {type}, ...; primary key {column}; foreign key {column} -> {table}({column}))
    ...

    Question: {question}
    Write one SQLite query that answers the question.
    SQL: {query};

The text before the first ";" counts, out of a fenced block where there is one.  A query is right if it gives the gold
query's rows (evaluation/sql/worker.py says what "the same" is).  A document whose database is not there, or whose gold
query fails on it, is judged by the normalised text of the query; the result's note counts them, and ``executed`` is
the share judged by execution.  An answer that fails, does not end, or does not only read is wrong; ``sql_error`` is
the share of them among those executed.  The rows name their databases only: schemas and databases are read below
--data_dir, ``spider/tables.json`` and ``spider/database/ID/ID.sqlite``.  The training split calibrates where it is
there, else documents of the validation split that do not evaluate.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from core.errors import UserError, did_you_mean
from evaluation.data.documents import Doc
from evaluation.data.rows import Row, Source
from evaluation.data.splits import Split
from evaluation.grading import Grade
from evaluation.sql.databases import Databases
from evaluation.sql.text import normalise_sql, read_sql
from evaluation.tasks.base import Task, register

ASKED = "Write one SQLite query that answers the question."


@dataclass(frozen=True)
class Spider(Task):
    """The question holds the schema, so that it is whole by itself; the category is the database's id."""

    stratified: bool = True
    databases: Databases | None = field(default=None, compare=False, repr=False)  # None: not opened yet

    num_fewshot = 0
    max_new_tokens = 128
    max_length = 2048
    stop = (";", "Question:")  # no blank line: chat models write one before a fenced block
    metrics = {"accuracy": "acc", "exact": "exact"}
    id_field = "question"
    calib_source = Source(hub_id="xlangai/spider", hub_config=None, split="train", folder="spider/train", embedded=None,
                          fields={"db_id": "text", "question": "text", "query": "text"}, if_there=True)

    def opened(self, folder: Path | None) -> "Spider":
        if folder is None:
            raise UserError(f"dataset {self.name!r} needs schemas and databases, which the hub's rows do not have; "
                            f"pass --data_dir with a folder that holds {self.source.folder}.parquet, "
                            f"{self.source.name}/tables.json and {self.source.name}/database")
        return replace(self, databases=Databases(folder / self.source.name))

    def content(self, docs: Sequence[Doc]) -> str:
        return self.databases.content(docs)

    def split(self, load, calib: int, evaluate: int, seed: int) -> Split:
        """The note says how the documents that evaluate are judged."""
        parts = super().split(load, calib, evaluate, seed)
        return replace(parts, note="; ".join(filter(None, (parts.note, self.databases.told(parts.eval)))))

    def make_doc(self, row: Row) -> Doc:
        name, gold = row.get("db_id"), row.get("query").strip().rstrip(";").rstrip()
        if name not in self.databases.schemas:
            raise row.error("db_id", f"a database of tables.json{did_you_mean(name, self.databases.schemas)}")
        for text, of in ((row.get("question"), "question"), (gold, "query")):
            if not text.strip():
                raise row.error(of, "a non-empty text")
        question = f"{self.databases.schemas[name]}\n\nQuestion: {row.get('question')}"
        return Doc(str(row.number), question, gold=gold, stratum=name)

    def prompt(self, doc: Doc, scoring: str) -> str:
        return f"{doc.question}\n{ASKED}\nSQL:"

    def target(self, doc: Doc, scoring: str) -> str:
        return f"{doc.gold};"

    def grade(self, doc: Doc, text: str) -> Grade:
        answer, executed = read_sql(text), self.databases.judges(doc)
        exact = float(answer is not None and normalise_sql(answer) == normalise_sql(doc.gold))
        scores = {"exact": exact, "executed": float(executed)}
        if not executed:
            return Grade(answer, exact, scores)
        if answer is None:
            return Grade(None, 0, scores | {"sql_error": 0.0})  # counted as one that could not be parsed
        verdict = self.databases.compare(doc, answer)
        return Grade(answer, float(verdict.same), scores | {"sql_error": float(verdict.answer_error is not None)})


register(Spider("spider", replace(Spider.calib_source, split="validation", folder="spider/validation", if_there=False)))
