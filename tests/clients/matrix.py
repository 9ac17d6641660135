"""Every subscriber of a topic gets every message of it exactly once and in each publisher's order.

usage: matrix.py URL CONNECTIONS TOPICS PUBLISHERS ROUNDS

Prints a summary as JSON in its last line. Ends with an error as soon as a message is missing, comes twice or comes too
early, or when two minutes have passed.
"""

import asyncio
import json
import sys

from websockets.asyncio.client import connect

DEADLINE_S = 120


async def open_connection(url, gate):
    async with gate:
        return await connect(url, compression=None, ping_interval=None, max_queue=None, open_timeout=60, proxy=None)


async def ask(socket, kind, payload, id):
    await socket.send(json.dumps({"id": id, "type": kind, "payload": payload}))


async def subscribe(socket, topic, publishers, rounds):
    """Receives what is published to one topic, and then nothing more."""
    expected = [0] * publishers
    for _ in range(publishers * rounds):
        message = json.loads(await socket.recv())
        assert message["type"] == "message", message
        assert message["payload"]["topic"] == topic, message
        publisher, number = message["payload"]["data"]
        assert number == expected[publisher], f"{topic}: {number} of {publisher}, not {expected[publisher]}"
        expected[publisher] += 1
    await ask(socket, "ping", {}, "last")
    reply = json.loads(await socket.recv())
    assert reply["type"] == "pong" and reply["reply_to"] == "last", reply
    return sum(expected)


async def publish(socket, publisher, publishers, topics, rounds):
    """Publishes to all topics in turn; returns what the receipts say, added up."""

    async def write():
        for number in range(rounds):
            for step in range(topics):
                topic = (step + publisher * topics // publishers) % topics
                await ask(socket, "publish", {"topic": f"topic.{topic}", "data": [publisher, number]}, step)

    writing = asyncio.create_task(write())
    matched = queued = 0
    for index in range(rounds * topics):
        receipt = json.loads(await socket.recv())
        assert receipt["reply_to"] == index % topics, receipt
        assert receipt["payload"]["dropped"] == 0, receipt
        matched += receipt["payload"]["matched"]
        queued += receipt["payload"]["queued"]
    await writing
    return matched, queued


async def main(url, connections, topics, publishers, rounds):
    gate = asyncio.Semaphore(64)
    sockets = await asyncio.gather(*(open_connection(url, gate) for _ in range(connections + publishers)))
    subscribers, publishing = sockets[:connections], sockets[connections:]
    topic_of = [f"topic.{index % topics}" for index in range(connections)]
    for socket, topic in zip(subscribers, topic_of):
        await ask(socket, "subscribe", {"topic": topic}, "first")
    for socket, topic in zip(subscribers, topic_of):
        reply = json.loads(await socket.recv())
        assert reply["payload"] == {"success": True, "message": f"Subscribed to {topic}", "topic": topic}, reply

    receiving = asyncio.gather(
        *(subscribe(socket, topic, publishers, rounds) for socket, topic in zip(subscribers, topic_of))
    )
    receipts = await asyncio.gather(
        *(publish(socket, index, publishers, topics, rounds) for index, socket in enumerate(publishing))
    )
    received = sum(await receiving)
    for start in range(0, len(sockets), 64):
        await asyncio.gather(*(socket.close() for socket in sockets[start : start + 64]))
    assert all(socket.close_code == 1000 for socket in sockets), "a clean end for everyone"
    matched, queued = (sum(column) for column in zip(*receipts))
    summary = {"published": publishers * topics * rounds, "matched": matched, "queued": queued, "received": received}
    print(json.dumps(summary), flush=True)


if __name__ == "__main__":
    url, *numbers = sys.argv[1:]
    asyncio.run(asyncio.wait_for(main(url, *map(int, numbers)), DEADLINE_S))
