"""Queues a workflow in API format, follows its progress, fetches its pictures: client.py WORKFLOW [SERVER [FOLDER]]"""

import asyncio
import json
import sys
import uuid
from pathlib import Path

import aiohttp


async def main(workflow: str, server: str = "http://127.0.0.1:8188", folder: str = ".") -> None:
    ask = {"prompt": json.loads(Path(workflow).read_text("utf-8")), "client_id": uuid.uuid4().hex}
    async with aiohttp.ClientSession(server) as http, http.ws_connect(f"/ws?clientId={ask['client_id']}") as events:
        async with http.post("/prompt", json=ask) as reply:
            answer = await reply.json()
        wrong = [error["details"] for node in dict(answer["node_errors"]).values() for error in node["errors"]]
        if wrong or "error" in answer:
            sys.exit("\n".join(wrong) or answer["error"]["message"])
        async for event in events:
            if event.type != aiohttp.WSMsgType.TEXT:  # a preview
                continue
            message = json.loads(event.data)
            kind, data = message["type"], message["data"]
            if kind == "progress":
                print(f"node {data['node']}: {100 * data['value'] // data['max']} %")
            for picture in (data["output"] or {}).get("images", []) if kind == "executed" else []:
                async with http.get("/view", params=picture) as reply:
                    file = Path(folder, picture["filename"])
                    file.write_bytes(await reply.read())
                    print(file)
            if kind in ("execution_error", "execution_interrupted"):
                sys.exit(data.get("exception_message", "interrupted"))
            if kind == "execution_success":
                return


asyncio.run(main(*sys.argv[1:]))
