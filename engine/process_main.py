"""The engine's own process: `python -m headway.engine.process_main FOLDER PARENT`, configured on stdin.

It connects to the two sockets in FOLDER, ends when the process PARENT ends, and opens no other door.
"""

import gc
import logging
import os
import shutil
import sys
import threading
import time
from pathlib import Path

from headway.engine.build import build
from headway.engine.config import EngineConfig
from headway.engine.errors import HeadwayError
from headway.engine.loop import serve
from headway.engine.messages import Ready, StartFailed
from headway.engine.sockets import EngineEnd

PARENT_CHECK_SECONDS = 0.5

logger = logging.getLogger(__name__)


def main() -> None:
    """Build the engine, say so or why not, and serve until told to end."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    folder, parent = Path(sys.argv[1]), int(sys.argv[2])
    threading.Thread(target=_end_with, args=(parent, folder), daemon=True).start()
    config = EngineConfig.model_validate_json(sys.stdin.buffer.read())
    link = EngineEnd(folder)
    try:
        try:
            engine = build(config)
        except Exception as error:
            if not isinstance(error, HeadwayError):
                logger.exception("the engine could not start")
            link.send([StartFailed(type(error).__name__, str(error))])
            sys.exit(1)
        gc.collect()
        gc.freeze()  # the model and its libraries outlive every collection: no need to look through them
        link.send([Ready(engine.info)])
        try:
            serve(engine, link)
        finally:
            engine.close()
    finally:
        link.close()


def _end_with(parent: int, folder: Path) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_SECONDS)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


if __name__ == "__main__":
    main()
