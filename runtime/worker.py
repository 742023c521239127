"""The engine process: opens an engine, then takes commands, steps and reports. A second thread reads the commands.

The other end is a socket in the face's process. When that closes, for whatever reason, this process ends.
"""

from __future__ import annotations

import importlib
import logging
import signal
import socket
import threading
from collections.abc import Mapping
from typing import Any

from mlc.errors import MlcError

from .driver import Driver
from .engine import Engine
from .mailbox import Mailbox
from .wire import CommandBuffer, Failed, Turn, pack

HEARTBEAT = 0.5  # seconds between two reports of an engine that has nothing to do
_CHUNK = 1 << 20  # bytes

_log = logging.getLogger("mlc.engine")


def main(connection: socket.socket, factory: str, options: Mapping[str, Any]) -> None:
    """Runs in a spawned process. `factory` is "module:function"; called with `options`, it returns an `Engine`."""
    for name in (signal.SIGINT, signal.SIGTERM):  # they go to the whole group: the face decides when to stop
        signal.signal(name, signal.SIG_IGN)
    try:
        _serve(connection, factory, options)
    except ConnectionError:  # nobody listens any more
        return
    finally:
        connection.close()


def _serve(connection: socket.socket, factory: str, options: Mapping[str, Any]) -> None:
    try:
        driver = Driver(_open(factory, options))
    except Exception as error:
        if not isinstance(error, MlcError):
            _log.exception("the engine could not be opened")
        connection.sendall(pack(Failed(str(error) or type(error).__name__)))
        return
    connection.sendall(pack(driver.ready()))
    try:
        _loop(connection, driver)
    except ConnectionError:
        raise
    except Exception as error:
        _log.exception("the engine cannot go on")
        connection.sendall(pack(Failed(f"the engine cannot go on ({type(error).__name__}); its log says more")))


def _open(factory: str, options: Mapping[str, Any]) -> Engine:
    module, _, name = factory.partition(":")
    engine = getattr(importlib.import_module(module), name)(**options)
    assert isinstance(engine, Engine), f"{factory} returns no engine"
    return engine


def _loop(connection: socket.socket, driver: Driver) -> None:
    """Until the other end closes. Commands that have arrived are applied before each step."""
    mailbox = Mailbox()
    mailbox.interrupt = driver.interrupt
    threading.Thread(target=_read, args=(connection, mailbox), name="mlc-commands", daemon=True).start()
    while True:
        commands = mailbox.take(HEARTBEAT if driver.idle else 0.0)
        if mailbox.closed:
            return
        for command in commands:
            driver.apply(command)
        if driver.idle:
            driver.rest()
        connection.sendall(pack(Turn(driver.turn())))


def _read(connection: socket.socket, mailbox: Mailbox) -> None:
    """Put what comes into the mailbox, no faster than it is taken, so that the peer knows how much is unread."""
    commands = CommandBuffer()
    try:
        while data := connection.recv(_CHUNK):
            for command in commands.feed(data):
                mailbox.put(command)
            mailbox.wait_taken()
        mailbox.close()
    except ConnectionError:
        mailbox.close()
    except Exception as error:
        mailbox.close(error)
