"""A server in a process: wait until it listens, use it, and stop it politely."""

import http.server
import os
import urllib.request

import anyio
import anyio.to_thread

from creche import from_process, open_nursery


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"hello from process {os.getpid()}".encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


def serve() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        from_process.started(server.server_port)
        try:
            server.serve_forever()
        finally:
            print("the server cleans up", flush=True)


def fetch(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as response:
        return str(response.read().decode())


async def main() -> None:
    async with open_nursery() as nursery:
        port = await nursery.start(serve)
        (server,) = nursery.processes
        print(f"{server.name} is ready")
        print(await anyio.to_thread.run_sync(fetch, port))
        await server.terminate()
    print(f"it ended with exit code {server.exitcode}")


if __name__ == "__main__":
    anyio.run(main)
