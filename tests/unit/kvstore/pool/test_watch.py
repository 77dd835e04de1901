"""The end of a process is noticed, once, and nothing is left open."""

import asyncio
import os
import subprocess

from llmserve.kvstore.pool.watch import ProcessWatch


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE)


async def test_the_end_of_a_process_is_told_once() -> None:
    watch, process, ended = ProcessWatch(), sleeper(), asyncio.Event()
    files = len(os.listdir("/proc/self/fd"))
    watch.add("x", process.pid, ended.set)
    watch.add("x", process.pid, ended.set)
    assert len(watch) == 1
    await asyncio.sleep(0)
    assert not ended.is_set()
    process.kill()
    async with asyncio.timeout(5):
        await ended.wait()
    process.communicate()
    assert len(watch) == 0
    assert len(os.listdir("/proc/self/fd")) < files + 1
    watch.close()


async def test_a_process_that_is_gone_already() -> None:
    watch, process, ended = ProcessWatch(), sleeper(), asyncio.Event()
    process.kill()
    process.communicate()
    watch.add("x", process.pid, ended.set)
    async with asyncio.timeout(5):
        await ended.wait()


async def test_closing_forgets_those_that_live() -> None:
    watch, process = ProcessWatch(), sleeper()
    files = len(os.listdir("/proc/self/fd"))
    watch.add("x", process.pid, lambda: None)
    watch.close()
    watch.close()
    assert len(os.listdir("/proc/self/fd")) == files
    process.kill()
    process.communicate()
