"""Every adapter, in the order in which they are tried."""

from __future__ import annotations

from .adapter import Adapter
from .attention import COQUI_ATTENTION, ESPNET_ATTENTION, FAMILY_ATTENTION
from .decoder import TEACHER_FORCED
from .free_running import FREE_RUNNING
from .invertible import GLOW_TTS_INVERTIBLE, LUS_INVERTIBLE, WAVEGLOW_INVERTIBLE
from .lstm import LSTM_CELL
from .waveglow_wn import WAVEGLOW_WN
from .wavenet import TRANSFORMERS_WN, VITS_WN

ADAPTERS: dict[str, Adapter] = {
    adapter.name: adapter
    for adapter in (
        VITS_WN,
        TRANSFORMERS_WN,
        WAVEGLOW_WN,
        WAVEGLOW_INVERTIBLE,
        LUS_INVERTIBLE,
        GLOW_TTS_INVERTIBLE,
        FREE_RUNNING,
        TEACHER_FORCED,
        FAMILY_ATTENTION,
        COQUI_ATTENTION,
        ESPNET_ATTENTION,
        LSTM_CELL,
    )
}

OPS = tuple(dict.fromkeys(adapter.op for adapter in ADAPTERS.values()))
"""Names of the operations that modules can be swapped to."""
