"""KServe v2 over HTTP/1.1 for asyncio: aiohttp's pool, made in the event loop of the first request."""

import asyncio
import io
import time
from collections.abc import Sequence

import aiohttp

from client import _wire_http as wire
from client._address import Address
from client._errors import CUT_OFF, error_from_status
from client._request import Answer, Request, Share
from client._status import ServerStatus
from client._tls import ssl_context

UNCONNECTED = (aiohttp.ClientConnectorError, ValueError)  # nothing has been sent


class AsyncHttpTransport:
    def __init__(self, address: Address) -> None:
        self._address, self.url = address, address.url("http")
        self._context = None if address.tls is None else ssl_context(address.tls)
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    async def infer(self, request: Request) -> Answer:
        answer = await self._ask("POST", *wire.encode_request(request), request.model, request.timeout)
        return wire.decode_answer(*answer, request, self.url)

    async def share(self, share: Share) -> list[str]:
        """See `GrpcTransport.share`."""
        answer = await self._ask(*wire.encode_share(share), "shared memory", share.timeout)
        return wire.decode_share(*answer, share, self.url)

    async def status(self, timeout: float) -> ServerStatus:
        deadline = time.monotonic() + timeout
        answers = [
            await self._ask("GET", path, {}, [], "status", deadline - time.monotonic())
            for path in (wire.METADATA, wire.READY, wire.STATISTICS)
        ]
        return wire.decode_status(answers, self.url, timeout)

    async def close(self) -> None:
        self._closed = True
        if self._session is not None:
            await self._session.close()

    async def _ask(
        self, method: str, path: str, headers: dict[str, str], body: Sequence[bytes], model: str, timeout: float
    ) -> tuple[int, bytes]:
        """Return the HTTP status and the body. Raises a `ClassifierError` if no answer comes."""
        data = b"".join(body)
        headers = self._address.headers() | headers  # the caller's function: what it raises is not the server's failure
        try:
            async with self._open().request(
                method,
                self.url + path,
                headers=headers,
                data=io.BytesIO(data) if data else None,  # sent in pieces: raw bytes would hold up the event loop
                timeout=aiohttp.ClientTimeout(total=max(1e-3, timeout), connect=self._address.connect_timeout),
                allow_redirects=False,
            ) as response:
                return response.status, await response.read()
        except aiohttp.ConnectionTimeoutError as error:
            status = "DEADLINE_EXCEEDED" if self._address.connect_timeout is None else "UNAVAILABLE"
            raise error_from_status(status, str(error), url=self.url, model=model, timeout=timeout) from error
        except (TimeoutError, asyncio.TimeoutError) as error:
            raise error_from_status("DEADLINE_EXCEEDED", "", url=self.url, model=model, timeout=timeout) from error
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, OSError, ValueError) as error:
            status, words = "UNAVAILABLE" if isinstance(error, UNCONNECTED) else CUT_OFF, str(error) or repr(error)
            raise error_from_status(status, words, url=self.url, model=model, timeout=timeout) from error
        except aiohttp.ClientError as error:
            raise wire.other_protocol(error, self.url) from error
        except asyncio.CancelledError:
            if self._closed:  # closing made aiohttp cancel a name look-up; the caller's own cancellation is passed on
                raise error_from_status("CANCELLED", "closed", url=self.url, model=model, timeout=timeout) from None
            raise

    def _open(self) -> aiohttp.ClientSession:
        if self._closed:
            raise aiohttp.ClientConnectionError("closed")
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, ssl=True if self._context is None else self._context)
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"Accept-Encoding": "identity"},  # else the server compresses, which costs it CPU time
            )
        return self._session
