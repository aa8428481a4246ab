"""Versions of what the stages make of the same inputs, which go into the keys of their
records."""

# Versions of what each stage makes of the same inputs, with their history. A new one makes new records.
VERSIONS = {
    # 1: first; 2: bfloat16 activations where the device is made for them; 3: other initial weights without BatchNorm,
    # and NormProp's BatchNorm on the trunk (`is_outdated`)
    "train": 3,
    "export": 4,  # 1: first; 2: rewritten for ONNX Runtime's CPU provider; 3: columns of zeros; 4: whole blocks
    # 1: first; 2: codes of int8 for what NormProp's rectifiers give where they are off; 3: float16 in the order that
    # the standard asks for, and only if it holds the activations
    "convert": 3,
    "parity": 1,  # 1: first
    "latency": 3,  # 1: first; 2: in turns with what it is compared with; 3: while the threads of all others are asleep
    "peak": 2,  # 1: first, of one product of matrices; 2: the fastest of several products and convolutions
    "analyze": 1,  # 1: first
    "probe": 3,  # 1: first; 2: with starts of processes; 3: export and forward passes at the paper's size
}

# Version of training from which on a result of a network without BatchNorm counts.
_TRAINS_WITHOUT_BATCH_NORM = 3


def version_of(stage: str, model: str, form: str | None = None) -> int:
    """The version that goes into the key of a stage's record. Version 3 of training
    changed nothing for the networks with BatchNorm, and that of conversion nothing for
    int8, so that their records of version 2 still count."""
    unchanged = (stage == "train" and model.endswith("_bn")) or (stage == "convert" and form == "int8")
    return 2 if unchanged else VERSIONS[stage]


def is_outdated(model: str, version: int) -> bool:
    """Whether a training record of this version is of initial weights or an
    architecture that the network had by mistake, so that it stands in no table."""
    return version < _TRAINS_WITHOUT_BATCH_NORM and not model.endswith("_bn")
