"""``--use_cache`` that knows which model answered (lm-eval #4063): one table per set of facts inside lm-eval's cache file."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch

_SAMPLE = 4096


def model_fingerprint(model: torch.nn.Module) -> str:
    """Return 16 hexadecimal digits that tell one model's weights from another's, in well under a second also for large ones.

    Up to 4096 evenly spread numbers of every tensor are hashed, rounded to bfloat16, so that one checkpoint has one fingerprint in every
    float dtype. Any training moves all numbers of a matrix, so a sample tells; an edit of a few numbers by hand may go unseen.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        if tensor.device.type == "meta" or not tensor.numel():
            continue
        local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        flat = local.detach().reshape(-1)[:: max(1, local.numel() // _SAMPLE)]
        digest.update(flat.to(torch.bfloat16).cpu().contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def facts_key(facts: Mapping[str, Any]) -> str:
    """Return the hash of what answers depend on."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def open_table(store: Any, facts: Mapping[str, Any]) -> None:
    """Point lm-eval's answer cache at the table that belongs to `facts`, made if it is not there.

    lm-eval looks answers up by request alone, in one `SqliteDict`; what it holds of it are its methods, and those ask for `tablename`
    each time. So no function of lm-eval has to be replaced, and answers of other models in the same file stay where they are.
    """
    name = f"t2_{facts_key(facts)[:32]}"
    if store.tablename != name:
        with type(store)(store.filename, tablename=name, autocommit=True):
            pass  # opening makes the table
        store.tablename = name


def table_entry(context: str) -> str:
    """Return the key under which the decision of pass 1 about `context` is kept beside the answers."""
    return "t2_pass1_" + hashlib.sha256(context.encode("utf-8", "surrogatepass")).hexdigest()
