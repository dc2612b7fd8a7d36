"""Answers for the rows of a file or of standard input, by one model or by several that share a base."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import Dataset
from tqdm.auto import tqdm

from peftkit.errors import UserError
from peftkit.prediction.predictor import NOT_OF_ONE_KIND, Predictor, load
from peftkit.prediction.readers import StreamedRow, stream_rows
from peftkit.prediction.shared_base import share_base
from peftkit.prediction.writers import answer_writer, check_output
from peftkit.system.files import redact_home
from peftkit.system.logging import logger

# Rows held at a time: enough to find batches of like length among them.
CHUNK = 2048


def predict(
    folders: Sequence[Path],
    file: Path | None,
    output: Path | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    input_format: str | None = None,
    top_k: int | None = None,
    trust_remote_code: bool = False,
) -> Path | None:
    """Write a line for each row of `file`, or of standard input: its number, and the answer.

    With several folders, of runs on one base, each answer stands under its folder's name, and the rows are read once.
    A row that can't be read has an `error` instead, and the rest goes on. `columns` names, by the task's own fields,
    columns other than those trained on; `top_k` keeps so many labels' probabilities. `output` ends in .jsonl, .csv or
    .parquet; without it standard input is answered on standard output, and a file in NAME.predictions.jsonl.
    Returns where the answers are. Raises UserError.
    """
    if top_k is not None and top_k < 1:
        raise UserError(f"--top_k {top_k}: 1 is the least")
    if output is None and file is not None:
        output = Path(f"{file.stem}.predictions.jsonl")
    check_output(output)
    rows = stream_rows(file, input_format)
    predictors = _load_all(folders, columns or {}, trust_remote_code)
    where = "standard input" if file is None else redact_home(file)
    unread = total = 0
    with answer_writer(output, ranked=top_k is not None) as write, tqdm(desc="predict", unit="row") as progress:
        while chunk := list(islice(rows, CHUNK)):
            if not total:
                _check_columns(next((row for row in chunk if row.problem is None), None), predictors, where)
            answers = _answers(chunk, predictors, where, top_k)
            write(answers)
            total += len(chunk)
            progress.update(len(chunk))
            for answer in answers:
                if "error" in answer:
                    unread += 1
                    if unread == 1:
                        logger.warning("%s", answer["error"])
        if not total:
            raise UserError(f"{where}: has no rows")
        if unread == total:
            raise UserError(f"{where}: none of its {total} rows could be read; the first is told above")
    if unread:
        logger.warning("%d of %d rows could not be read; their answers hold the error", unread, total)
    logger.info("%d rows predicted%s", total - unread, "" if output is None else f": {output}")
    return output


def _load_all(folders: Sequence[Path], columns: Mapping[str, str], trust_remote_code: bool) -> dict[str, Predictor]:
    """The models by the name under which their answers stand; one alone has none."""
    if len(folders) == 1:
        return {"": load(folders[0], columns=columns, trust_remote_code=trust_remote_code)}
    names = [folder.resolve().name for folder in folders]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"two folders are called {twice[0]}, by which their answers would be named; rename one")
    found = share_base(
        (name, load(folder, trust_remote_code=trust_remote_code)) for name, folder in zip(names, folders, strict=True)
    )
    if unread := set(columns) - {field for one in found.values() for field in one.task.input_fields}:
        raise UserError(f"--{sorted(unread)[0]}: none of the models reads it")
    return {name: one.with_columns(columns) for name, one in found.items()}


def _check_columns(row: StreamedRow | None, predictors: Mapping[str, Predictor], where: str) -> None:
    """Raise UserError when the first row lacks a column: then it is the word that is wrong, not the row."""
    for predictor in predictors.values() if row is not None else ():
        task = predictor.task
        for column in task.inputs:
            if row is not None and column not in row.values:
                words = " or ".join(f"--{name}" for name in task.input_fields if getattr(task, name))
                raise UserError(f"{where}: no column '{column}' among {', '.join(row.values)}; name it with {words}")


def _answers(
    chunk: Sequence[StreamedRow], predictors: Mapping[str, Predictor], where: str, top_k: int | None
) -> list[dict[str, Any]]:
    rows = {row.number: _row(row.values, predictors) for row in chunk if row.problem is None}
    columns = dict.fromkeys(name for row in rows.values() for name in row)
    rows = {number: {name: row.get(name) for name in columns} for number, row in rows.items()}
    errors = {row.number: f"{where}, row {row.number} (from 0): {row.problem}" for row in chunk if row.problem}
    for number, problem in _problems(rows, predictors, where):
        errors.setdefault(number, problem)
    good = {number: row for number, row in rows.items() if number not in errors}
    found: dict[int, dict[str, Any]] = {number: {"row": number} for number in good}
    dataset = Dataset.from_list(list(good.values()))
    for name, predictor in predictors.items() if good else ():
        for number, answer in zip(good, predictor.answers(dataset, top_k=top_k), strict=True):
            found[number] |= {name: answer} if name else answer
    return [found.get(row.number) or {"row": row.number, "error": errors[row.number]} for row in chunk]


def _row(values: Mapping[str, Any], predictors: Mapping[str, Predictor]) -> dict[str, Any]:
    """What the models read of a row; one text in the place of a list of words is split as in Python."""
    found: dict[str, Any] = {}
    for predictor in predictors.values():
        inputs = predictor.task.inputs
        mine = {name: values.get(name) for name in inputs}
        alone = mine[inputs[0]] if len(inputs) == 1 else None
        found |= predictor.task.row_of(alone) if isinstance(alone, str) else mine
    return found


def _problems(
    rows: Mapping[int, Mapping[str, Any]], predictors: Mapping[str, Predictor], where: str
) -> Iterator[tuple[int, str]]:
    """Rows that a model can't read, with what is wrong; they are looked at one by one only if there are any."""
    try:
        whole = Dataset.from_list([dict(row) for row in rows.values()])
        if not any(next(one.task.input_problems(whole, where), None) for one in predictors.values() if rows):
            return
    except NOT_OF_ONE_KIND:
        # Each row is then looked at alone.
        pass
    for number, row in rows.items():
        try:
            alone = Dataset.from_list([dict(row)])
        except NOT_OF_ONE_KIND as error:
            yield (
                number,
                f"{where}, row {number} (from 0): {' '.join(str(error).split())[:100]}; correct it or remove it",
            )
            continue
        for predictor in predictors.values():
            if problem := next(predictor.task.input_problems(alone, where, number), None):
                yield number, problem
