"""A client that never stops asking, for tests of what no request may notice."""

from __future__ import annotations

import threading

import httpx

from tests.serving.scenes import scene_tiff


class Caller:
    """A client that never stops asking, with a kept connection and with new ones; collects what is not a 200."""

    def __init__(self, url: str) -> None:
        self.url, self.bad, self.digests, self.count = url, [], set(), 0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(keep,)) for keep in (True, False)]

    def _call(self, keep: bool) -> None:
        body = scene_tiff(64)
        client = httpx.Client(trust_env=False, timeout=30)
        while not self._stop.is_set():
            try:
                headers = {"Content-Type": "image/tiff"} | ({} if keep else {"Connection": "close"})
                reply = client.post(f"{self.url}/invocations", content=body, headers=headers)
                self.count += 1
                if reply.status_code != 200:
                    self.bad.append(reply.text)
                self.digests.add(reply.headers.get("x-amzn-sagemaker-custom-attributes"))
            except httpx.HTTPError as error:
                self.bad.append(repr(error))
        client.close()

    def __enter__(self) -> Caller:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
