"""The parts of the engine that asks many workers."""

include "ask/engine/peer.pxd"
