"""lm-evaluation-harness as a library of tasks, found by name; nothing of it is imported before a task is asked for."""

from __future__ import annotations

import contextlib
import io
import logging
import re
from functools import cache
from pathlib import Path

from core.errors import DataError, UserError, did_you_mean, one_line

INSTALL = "pip install -r requirements-lm-eval.txt"
KINDS = {"multiple_choice": "choice", "generate_until": "generate", "loglikelihood": "likelihood",
         "loglikelihood_rolling": "likelihood"}
GROUPS = {"GROUP": "a group", "TAG": "a tag"}


def package():
    """The package; UserError if it is not installed."""
    try:
        import lm_eval.tasks
    except ImportError as error:
        raise UserError(f"data sets lm_eval:NAME need lm-evaluation-harness, which is not there ({one_line(error)}); "
                        f"install it with {INSTALL}") from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it remarks on every YAML file that leaves out a default
    return lm_eval


def version() -> str:
    """The package's version."""
    from importlib.metadata import version

    return version("lm_eval")


@contextlib.contextmanager
def quiet():
    """Keep its progress bars, a few for every task, off the terminal that shows ours."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def check_folder(folder: str) -> None:
    """Refuse a --lm_eval_path that is no folder."""
    if not Path(folder).is_dir():
        state = "is a file" if Path(folder).exists() else "does not exist"
        raise UserError(f"--lm_eval_path {folder!r} {state}; give a folder with YAML files of lm-evaluation-harness")


@cache
def manager(folder: str | None):
    """The tasks of a folder, or those that come with the package; the latter are 13,000 files, hence seconds."""
    tasks = package().tasks
    return tasks.TaskManager(include_path=folder, include_defaults=folder is None)


def entry(name: str, folder: str | None):
    """The manager that knows a task, and what it knows of it; one of the folder comes before one of the package."""
    if folder is not None:
        check_folder(folder)
        package()
        if name in manager(folder).task_index:
            return manager(folder), manager(folder).task_index[name]
        check_files(name, folder)
    if name in manager(None).task_index:
        return manager(None), manager(None).task_index[name]
    known = [*(manager(folder).all_subtasks if folder else ()), *manager(None).all_subtasks]
    where = f" or in {folder!r}" if folder else ""
    raise UserError(f"lm-evaluation-harness {version()} has no task {name!r}{did_you_mean(name, known)}, in itself"
                    f"{where}; lm_eval ls tasks lists its own, --lm_eval_path FOLDER adds yours")


def check_files(name: str, folder: str) -> None:
    """Refuse the folder's file that would be this task and does not load: the library passes it over in silence."""
    read = {known.yaml_path for known in manager(folder).task_index.values()}
    for path in sorted(Path(folder).rglob("*.yaml")):
        text = path.read_text(encoding="utf-8", errors="replace")
        if path in read or not re.search(rf"^task:\s*[\"']?{re.escape(name)}[\"']?\s*(#.*)?$", text, re.MULTILINE):
            continue
        try:
            manager(folder).load(str(path))
            reason = "another file of the folder has a task of that name"
        except Exception as error:  # whatever a user's file makes of the parser is the user's to mend
            reason = one_line(error)
        raise UserError(f"{str(path)!r} does not load as a task of lm-evaluation-harness ({reason}); correct the file")


@cache
def described(name: str, folder: str | None) -> dict:
    """What a task's YAML file says, if it can be asked here; reads no rows."""
    _, task_entry = entry(name, folder)
    if task_entry.kind.name in GROUPS:
        members = ", ".join(sorted(member for member in task_entry.tags)[:3]) or ", ".join(_members(task_entry)[:3])
        kind = GROUPS[task_entry.kind.name]
        raise UserError(f"lm_eval:{name} is {kind} of tasks ({members}, ...); name its tasks one by one, each is a "
                        "data set")
    config = dict(task_entry.cfg or {})
    if task_entry.kind.name != "TASK":
        raise UserError(f"lm_eval:{name} is a Python class with requests of its own; only tasks of output types "
                        f"{', '.join(KINDS)} that a YAML file describes can be asked here")
    kind = config.setdefault("output_type", "generate_until")  # the library's own default
    if kind not in KINDS:
        raise UserError(f"lm_eval:{name} has output_type {kind!r}; use a task of one of: {', '.join(KINDS)}")
    if refused := _refused(config):
        raise UserError(f"lm_eval:{name} {refused}; use another task, or a YAML file of your own without it")
    return config


def _members(task_entry) -> list[str]:
    members = (task_entry.cfg or {}).get("task") or ()
    return [member if isinstance(member, str) else str(member.get("task", member.get("group"))) for member in members]


def _refused(config: dict) -> str | None:
    """Why a task of a known output type cannot be asked here; None if it can."""
    options = config.get("generation_kwargs") or {}
    metrics = [metric.get("metric") for metric in config.get("metric_list") or () if isinstance(metric, dict)]
    if config.get("doc_to_image") or config.get("doc_to_audio"):
        return "shows images or sound, and only texts are asked here"
    if config.get("unsafe_code"):
        return "runs code that the model wrote (unsafe_code), which is not done here"
    if options.get("do_sample") or (config.get("repeats") or 1) > 1:
        return "draws its answers (do_sample or repeats), and only the greedy one is written here"
    if "acc_mutual_info" in metrics:
        return "asks its options a second time without the question (acc_mutual_info), which is not done here"
    return None


@cache
def load(name: str, folder: str | None):
    """The task with its rows."""
    described(name, folder)
    keeper, _ = entry(name, folder)
    try:
        with quiet():
            return keeper.load([name])["tasks"][name]
    except Exception as error:  # reading rows, templates and a user's functions can raise anything
        raise DataError(f"lm_eval:{name} does not load ({type(error).__name__}: {one_line(error)}); correct its YAML "
                        "file, or go online where its rows are on the hub") from error
