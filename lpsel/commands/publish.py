"""`lpsel publish`: write the subset of a run as a dataset folder with a card, and upload it to the Hub."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from httpx import HTTPError
from huggingface_hub import DatasetCard, DatasetCardData, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from lpsel import console, report
from lpsel.commands.arguments import OneLineParser
from lpsel.commands.result_summary import statistics
from lpsel.data.paths import is_hub_id
from lpsel.errors import UserError, first_line
from lpsel.integrity import Damaged, check_files
from lpsel.output_folder import MARKER, SUBSET_FILES, output_folder
from lpsel.run_config import PUBLISHED, RESULT, read_result

SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M"}
LARGEST = "n>1M"
AGAIN = "select again"


def main(arguments: Sequence[str]) -> None:
    parser = OneLineParser(
        prog="lpsel publish",
        description="Write the subset of a run as a dataset folder with a card; upload it with --to.",
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder of select or train")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the dataset folder (RUN/dataset)")
    parser.add_argument(
        "--license", metavar="ID", help="license of the source as a Hub identifier, such as cc-by-sa-3.0"
    )
    parser.add_argument("--to", metavar="OWNER/NAME", help="upload to this Hub dataset; needs HF_TOKEN")
    parser.add_argument("--public", action="store_true", help="make the dataset public if --to creates it")
    options = parser.parse_args(arguments)
    folder = publish(options.run, options.out, options.license)
    if options.to:
        print(upload(folder, options.to, private=not options.public), flush=True)
    console.end("use it as dataset={}/data" if options.to else "upload it with --to OWNER/NAME", folder)


def publish(run: Path, out: Path | None = None, license: str | None = None) -> Path:
    """Write a dataset folder with data/train.jsonl or .parquet, selection.parquet and the card, README.md.

    An earlier dataset folder is replaced. `license` is the license of the source (default: from conf/dataset).

    Raises:
        UserError: the run has no intact subset, its license is unknown, or `out` was not written by publish.
    """
    result = read_result(run.expanduser()) or {}
    try:
        subset, selection = (run.expanduser() / Path(result[name]).name for name in ("subset", "selection"))
        source = result["dataset"]
        license = license or source.get("license")
        name = source["name"]
    except (KeyError, TypeError, AttributeError):
        problem = f"not a finished run of select or train ({RESULT} with a subset)"
        raise UserError(run, problem=problem, hint="name the run folder of one") from None
    _check(result.get("sha256") or {}, subset, selection)
    if not license:
        raise UserError(f"dataset {name}", problem="its license is unknown", hint="set --license ID")
    folder = (out or run / PUBLISHED).expanduser().resolve()
    with output_folder(folder, "publish", (run, subset, selection)) as temporary:
        data = temporary / "data" / f"train{subset.suffix}"
        data.parent.mkdir()
        shutil.copyfile(subset, data)
        shutil.copyfile(selection, temporary / selection.name)
        try:
            dataset_card = card(result, data.relative_to(temporary), license)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(run / RESULT, problem=f"is not complete ({error})", hint=AGAIN) from error
        dataset_card.save(temporary / "README.md")
    return folder


def _check(hashes: dict[str, str], *files: Path) -> None:
    """Raise a UserError unless each file is an unchanged output of the run: nothing else is copied or uploaded."""
    for file in files:
        if file.name not in SUBSET_FILES or file.name not in hashes:
            raise UserError(file, problem=f"is not an output of the run with its hash in {RESULT}", hint=AGAIN)
    try:
        check_files(Path(), {str(file): hashes[file.name] for file in files})
    except Damaged as damage:
        raise damage.with_hint(AGAIN) from None


def upload(folder: Path, to: str, private: bool) -> str:
    """Upload a dataset folder to the Hub, creating the dataset if needed; returns its URL.

    Raises:
        UserError: the upload failed; the error has the Hub's response, without the token.
    """
    api = HfApi()
    try:
        api.create_repo(to, repo_type="dataset", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=to,
            repo_type="dataset",
            folder_path=folder,
            commit_message="Subset selected by lpsel",
            ignore_patterns=MARKER,
        )
    except (HfHubHTTPError, HFValidationError, HTTPError, OSError) as error:
        problem = f"the Hub responded: {first_line(error)}"
        hint = f"check the name, HF_TOKEN and the connection; the folder is {folder}"
        raise UserError(f"--to {to}", problem=problem, hint=hint) from None
    return f"{api.endpoint}/datasets/{to}"


def card(result: dict[str, Any], data: Path, license: str) -> DatasetCard:
    """Create the dataset card of a selection: metadata for the Hub, and a description."""
    source, scorer = result["dataset"], result["scorer"]
    hub_id = source["path"] if is_hub_id(source["path"]) else None
    metadata = DatasetCardData(
        license=license,
        task_categories=["text-generation"],
        size_categories=[next((size for limit, size in SIZES.items() if result["n_selected"] < limit), LARGEST)],
        source_datasets=[hub_id] if hub_id else ["original"],
        tags=["lpsel", "instruction-tuning", "data-selection"],
        configs=[{"config_name": "default", "data_files": data.as_posix()}],
    )
    at_commit = f" at commit {source['commit']}" if source.get("commit") else ""
    no_scorer = "none, the scores were given" if result["scores"] else "none"
    return DatasetCard.from_template(
        metadata,
        template_path=str(Path(report.__file__).parent / "templates" / "dataset_card.md.j2"),
        **{key: result[key] for key in ("pct", "rule", "n_selected", "n_total", "seed")},
        **{key: source[key] for key in ("name", "fingerprint")},
        source=hub_id + at_commit if hub_id else ("a local file" if source["path"] else "generated from a seed"),
        statistics=statistics(result),
        scorer=f"{scorer['name']} ({scorer['path'] or 'built in'})" if scorer else no_scorer,
        settings=", ".join(f"{name} {value}" for name, value in result["settings"].items() if value is not None),
        data=data.as_posix(),
    )
