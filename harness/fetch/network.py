"""What may be asked over the network, and whether the hub answers: decided once, in seconds, not in minutes of retries."""

import functools
import os

PROBE_SECONDS = 5.0


def _set(name: str) -> bool:
    return os.environ.get(name, "").strip().upper() in {"1", "ON", "YES", "TRUE"}


def index_blocked(explicit: bool) -> str | None:
    """Return why the package index must not be asked, or None.

    Args:
        explicit: the user asked for the download in so many words (`t2 fetch`). ``HF_HUB_OFFLINE=1`` then still stops the hub,
            but not the package index; ``T2_OFFLINE=1`` stops everything.
    """
    if _set("T2_OFFLINE"):
        return "T2_OFFLINE=1 forbids any network access"
    if not explicit and _set("HF_HUB_OFFLINE"):
        return "HF_HUB_OFFLINE=1: asked only by `t2 fetch`"
    return None


def hub_blocked() -> str | None:
    """Return why the hub can not or must not be asked, or None when it answers."""
    if _set("T2_OFFLINE"):
        return "T2_OFFLINE=1 forbids any network access"
    if _set("HF_HUB_OFFLINE"):
        return "HF_HUB_OFFLINE=1"
    from huggingface_hub import constants

    return _probe(constants.ENDPOINT)


@functools.cache
def _probe(endpoint: str) -> str | None:
    """Ask the hub's front page once per process. Its client would try five times with growing pauses for every file.

    A refusal (status 4xx) is an answer: a mirror may want a token there, which this does not send, or have no front page.
    """
    from huggingface_hub import get_session

    try:
        status = get_session().head(endpoint, timeout=PROBE_SECONDS).status_code
    except Exception as error:  # the client's exception types changed with its versions
        return f"not reachable ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no details'})"
    return f"answered with HTTP status {status}" if status >= 500 else None
