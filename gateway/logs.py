"""The gateway's log: one JSON object per line in gateway.log, as in whisper.log, and what matters on the console."""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import datetime, timezone
from logging.handlers import RotatingFileHandler
from pathlib import Path

FILE_BYTES, FILES = 50_000_000, 5


class JsonLine(logging.Formatter):
    """The fields of config/log4j2.xml. JSON escapes line breaks, so that no client can forge a line."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        fields = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "exception": self.formatException(record.exc_info) if record.exc_info else "",
        }
        return json.dumps(fields, ensure_ascii=False)


def set_up_logging() -> None:
    """Log into LOG_LOCATION when that can be written, and to the console from WHISPER_CONSOLE_LEVEL on."""
    console = logging.StreamHandler(sys.stderr)
    level = os.environ.get("WHISPER_CONSOLE_LEVEL", "warn").upper()
    console.setLevel(level if isinstance(logging.getLevelName(level), int) else "WARN")
    console.setFormatter(JsonLine())
    handlers: list[logging.Handler] = [console]
    if folder := os.environ.get("LOG_LOCATION"):
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            file = RotatingFileHandler(Path(folder) / "gateway.log", maxBytes=FILE_BYTES, backupCount=FILES, encoding="utf-8", delay=True)
            file.setFormatter(JsonLine())
            handlers.append(file)
        except OSError as error:
            print(f"gateway: no log in {folder}: {error.strerror}", file=sys.stderr)
    logging.basicConfig(level="INFO", handlers=handlers, force=True)
    logging.raiseExceptions = False  # a full disk must not fill the console
    for name in ("httpx", "uvicorn.error", "multipart.multipart", "python_multipart.multipart"):
        logging.getLogger(name).setLevel("WARNING")
