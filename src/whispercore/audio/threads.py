"""The threads that decode audio and detect voices, shared by all recordings of one owner."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor


class AudioThreads:
    """Two thread pools; the owner closes them. FFmpeg and onnxruntime release the GIL while they work.

    `decoding` has one thread per logical core, `detection` half as many, because decoding needs cores at the same time.
    """

    def __init__(self, cores: int) -> None:
        """`cores`: the logical cores that this process may run on."""
        self.decoding = ThreadPoolExecutor(cores, thread_name_prefix="decoder")
        self.detection = ThreadPoolExecutor(max(1, cores // 2), thread_name_prefix="vad")

    def close(self) -> None:
        """Drop queued work and wait for running work. Recordings that still use these threads fail."""
        self.decoding.shutdown(cancel_futures=True)
        self.detection.shutdown(cancel_futures=True)
