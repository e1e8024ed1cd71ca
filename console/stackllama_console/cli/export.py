"""``export``: a run's adapter or merged model with a model card, in a folder and, when asked, on the hub."""

import argparse
import shlex
from pathlib import Path
from typing import Any

from stackllama_engine.contract.errors import ExitCode, RefusedError, StackllamaError, UsageError
from stackllama_engine.contract.redact import redactor
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.launch.export import (
    Base,
    Result,
    check_free,
    find_base,
    find_result,
    is_hub_id,
    origin,
    rewritten,
    write_folder,
)

from ..file_modes import as_the_user_has_it
from ..model_card import Card, write_card
from ..sanitise import one_line
from ..units import size
from .output import say, show, show_json
from .runs import find

CARD = "README.md"


def export(arguments: argparse.Namespace) -> int:
    """Run ``export RUN``."""
    home = Home(arguments.home)
    run = find(home, arguments.run)
    repository: str | None = arguments.push
    if repository is not None and not is_hub_id(repository):
        raise UsageError(f"`--push {repository}`: expected a repository of the hub, such as `name/{run.id}`.")
    result = find_result(home, run, merged=arguments.merged)
    to: Path = arguments.to or Path(result.run.id)
    check_free(to, home)
    base = find_base(home, result.folder) if result.is_adapter else None
    if repository is not None and base is not None and base.is_local:
        raise _not_for_others(base, repository)
    card = Card(
        name=repository or to.name or result.run.id,
        result=result,
        base=base,
        prompt_format=result.prompt_format,
        origin=base.origin if base else origin(home, str(result.folder)),
    )
    files = rewritten(result, base) | {CARD: redactor().text(write_card(home, card)).encode()}
    with as_the_user_has_it():
        written = write_folder(result, files, to, home)
    notices = _notices(result, card)
    url = _push(to, repository) if repository else None
    if arguments.json:
        facts = {
            "run": result.run.id,
            "result": "adapter" if result.is_adapter else "model",
            "path": str(to.absolute()),
        }
        show_json(facts | {"base": base.name if base else None, "files": written, "url": url, "notices": notices})
        return ExitCode.DONE
    for notice in notices:
        say(f"note: {one_line(notice)}")
    what = "adapter" if result.is_adapter else "model"
    say(f"{result.run.id}: {what}, {len(written)} files, {size(sum(written.values()))}; {CARD} says how to load it")
    show(url or str(to))
    return ExitCode.DONE


def _not_for_others(base: Base, repository: str) -> RefusedError:
    made = f" (`stackllama-console export {base.run} --push …`)" if base.run else ""
    return RefusedError(
        f"`--push {repository}`: the adapter's base is {base.name}, which only this machine has. Push the merged model "
        f"(--merged); or push the base{made}, export the adapter without --push, and write the base's address on the "
        "hub into its adapter_config.json before you upload it."
    )


def _notices(result: Result, card: Card) -> list[str]:
    notices: list[str] = []
    if card.base and card.base.is_local:
        made = f" (export it with `stackllama-console export {card.base.run}`)" if card.base.run else ""
        notices.append(
            f"the adapter's base is {card.base.name}{made}, which only this machine has; elsewhere the merged model "
            "is easier to load (--merged)"
        )
    elif result.is_adapter and card.base is None:
        notices.append("the adapter's files name no base; write it into adapter_config.json")
    if card.prompt_format is None:
        notices.append("nothing records the prompt format that it was trained with")
    return notices


def _push(folder: Path, repository: str) -> str:
    """Upload the folder to a repository of the hub, which is created, private, if there is none; return its address.

    Raises:
        StackllamaError: the hub cannot be reached or refuses; the folder stays.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    http_error: Any = HfHubHTTPError.__bases__[0]  # of the hub's HTTP library, which changes with its version
    api = HfApi()
    say(f"uploading {folder} to {repository} …")
    try:
        created = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=created.repo_id, folder_path=folder, commit_message="Upload from stackllama-console")
    except OfflineModeIsEnabled:
        reason = "HF_HUB_OFFLINE is set; unset it"
    except LocalTokenNotFoundError:
        reason = "there is no token; log in with `hf auth login`, or set HF_TOKEN"
    except HfHubHTTPError as error:
        refused = error.response.status_code in (401, 403)
        reason = "the token may not write there; `hf auth login` with one that may" if refused else one_line(str(error))
    except HFValidationError as error:
        reason = one_line(str(error))
    except (http_error, OSError) as error:
        reason = f"the hub cannot be reached ({one_line(str(error)) or type(error).__name__})"
    else:
        return str(created)
    raise StackllamaError(
        f"Not uploaded: {redactor().text(reason)}. The export is complete in {folder}; upload it later with "
        f"`hf upload --private {repository} {shlex.quote(str(folder))}`."
    )
