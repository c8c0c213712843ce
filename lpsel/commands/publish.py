"""`publish`: a run's subset as a data set folder with a card, uploaded to the Hugging Face Hub when told to."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpsel.commands.arguments import OneLineParser
from lpsel.commands.result_summary import statistics
from lpsel.data.formats import reader_of
from lpsel.errors import UserError, first_line
from lpsel.integrity import Damaged, check_files
from lpsel.output_folder import MARKER, output_folder
from lpsel.run_config import RESULT, read_result

if TYPE_CHECKING:
    from huggingface_hub import DatasetCard

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
SIZE_ABOVE = "n>1M"
BODY = """# {name}, {pct:g} % by {rule}

{n_selected:,} of the {n_total:,} rows of {name} ({source}), chosen by lpsel, which finds the rows of an
instruction data set that matter with a small model (Mekala, Nguyen and Shang, Findings of ACL 2024, arXiv 2402.10430).

{figures}
- scorer: {scorer}
- seed: {seed}
- settings: {settings}
- fingerprint of the source: `{fingerprint}`

`{data}` has the rows as the source has them, in its order. `selection.parquet` has every row of the source by
`index` and content `id`, with its score, its cluster, whether it was chosen and, where it could not be, why.

The rows are those of {name}, and so is their license: {license}.
"""


def main(arguments: Sequence[str]) -> None:
    """Run the command as `lpsel publish ARGUMENTS`.

    Raises:
        UserError: whatever the user can mend.
    """
    given = _parser().parse_args(arguments)
    folder = publish(given.run, given.out, given.license)
    if given.to:
        print(upload(folder, given.to, private=not given.public), flush=True)
    print(folder, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="lpsel publish",
        description="Write a run's subset as a data set folder with a card; upload it with --to.",
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder of select or train")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the data set folder (RUN/dataset)")
    parser.add_argument("--license", metavar="ID", help="of the source, as the Hub names it, as in cc-by-sa-3.0")
    parser.add_argument("--to", metavar="OWNER/NAME", help="upload to this data set of the Hub (HF_TOKEN)")
    parser.add_argument("--public", action="store_true", help="make a data set that --to makes public")
    return parser


def publish(run: Path, out: Path | None = None, license: str | None = None) -> Path:
    """Write the data set folder: data/train.jsonl or .parquet, selection.parquet and README.md, the card.

    Args:
        run: run folder of select or train.
        out: where to; RUN/dataset by default. What an earlier publish wrote there is replaced.
        license: of the source; by default the one that conf/dataset says.

    Raises:
        UserError: not such a run, the license of the source is not known, or a folder that publish did not write.
    """
    result = _result(run)
    subset, selection = Path(result["subset"]), Path(result["selection"])
    hashes = result.get("sha256") or {}
    try:
        check_files(Path(), {str(file): hashes[file.name] for file in (subset, selection) if file.name in hashes})
    except Damaged as damage:
        raise damage.with_hint("select again") from None
    if lost := [file for file in (subset, selection) if not file.is_file()]:
        raise UserError(f"{lost[0]}: is not there any more; select again.")
    license = license or result["dataset"].get("license")
    if not license:
        raise UserError(f"dataset {result['dataset']['name']}: its license is not known; give --license ID.")
    folder = (out or run / "dataset").expanduser().resolve()
    with output_folder(folder, "publish", (run, subset, selection)) as made:
        data = made / "data" / f"train{subset.suffix}"
        data.parent.mkdir()
        data.write_bytes(subset.read_bytes())
        (made / selection.name).write_bytes(selection.read_bytes())
        try:
            about = card(result, data.relative_to(made), license)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{run / RESULT}: {error} is not as select writes it; select again.") from error
        about.save(made / "README.md")
    return folder


def upload(folder: Path, to: str, private: bool) -> str:
    """Upload a data set folder to the Hub, into a new data set where there is none, and return its address.

    Raises:
        UserError: what the Hub answers, without the token.
    """
    from httpx import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi()
    try:
        api.create_repo(to, repo_type="dataset", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=to,
            repo_type="dataset",
            folder_path=folder,
            commit_message="Subset chosen by lpsel",
            ignore_patterns=MARKER,
        )
    except (HfHubHTTPError, HFValidationError, HTTPError, OSError) as error:
        raise UserError(
            f"--to {to}: the Hub says: {first_line(error)}; check the name, HF_TOKEN and the connection. The folder is "
            f"{folder}."
        ) from None
    return f"{api.endpoint}/datasets/{to}"


def card(result: dict[str, Any], data: Path, license: str) -> "DatasetCard":
    """The card of a selection: metadata for the Hub, and what a reader has to know."""
    from huggingface_hub import DatasetCard, DatasetCardData

    source = result["dataset"]
    hub = source["path"] if source["path"] and reader_of(source["path"]) is None else None
    metadata = DatasetCardData(
        license=license,
        task_categories=["text-generation"],
        size_categories=[next((name for limit, name in SIZES if result["n_selected"] < limit), SIZE_ABOVE)],
        source_datasets=[hub] if hub else ["original"],
        tags=["lpsel", "instruction-tuning", "data-selection"],
        configs=[{"config_name": "default", "data_files": data.as_posix()}],
    )
    scorer = "none"
    if result["scorer"]:
        scorer = f"{result['scorer']['name']} ({result['scorer']['path'] or 'made on the spot'})"
    elif result["scores"]:
        scorer = "none, scores were given"
    body = BODY.format(
        name=source["name"],
        source=hub or ("a local file" if source["path"] else "made from a seed"),
        pct=result["pct"],
        rule=result["rule"],
        n_selected=result["n_selected"],
        n_total=result["n_total"],
        figures="\n".join(f"- {name}: {text}" for name, text in statistics(result)),
        scorer=scorer,
        seed=result["seed"],
        settings=", ".join(f"{name} {value}" for name, value in result["settings"].items() if value is not None),
        fingerprint=source["fingerprint"],
        data=data.as_posix(),
        license=license,
    )
    return DatasetCard(f"---\n{metadata.to_yaml()}\n---\n\n{body}")


def _result(run: Path) -> dict[str, Any]:
    result = read_result(run.expanduser()) or {}
    try:
        _ = result["subset"], result["selection"], result["dataset"]["name"]
    except (KeyError, TypeError):
        raise UserError(
            f"{run}: not a finished run of select or train (result.json with a subset); give one."
        ) from None
    return result
