"""A second client of a notebook's kernel, which asks it what the views there hold."""

import ast
import json
from pathlib import Path

from jupyter_client import BlockingKernelClient

SECONDS = 120


class Kernel:
    """Evaluates expressions beside the page, and leaves no trace in the notebook.

    Args:
        runtime: the folder of the server's connection files.
        kernel_id: as the server names it.
    """

    def __init__(self, runtime: Path, kernel_id: str):
        self.client = BlockingKernelClient()
        self.client.load_connection_file(str(runtime / f"kernel-{kernel_id}.json"))
        self.client.start_channels()
        self.client.wait_for_ready(timeout=SECONDS)

    def ask(self, call: str):
        """The value of a call to a function of `tests.browser.inside`, as JSON keeps it.

        Raises:
            RuntimeError: the kernel raised.
        """
        expressions = {"answer": f"__import__('json').dumps({call})"}
        reply = self.client.execute(
            "from tests.browser import inside",
            store_history=False,
            silent=True,
            user_expressions=expressions,
            reply=True,
            timeout=SECONDS,
        )["content"]
        found = reply.get("user_expressions", {}).get("answer", reply)
        if found["status"] != "ok":
            raise RuntimeError(f"{call}: {found.get('ename')}: {found.get('evalue')}")
        return json.loads(ast.literal_eval(found["data"]["text/plain"]))

    def close(self) -> None:
        self.client.stop_channels()
