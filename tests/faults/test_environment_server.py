"""64 clients of one environment server, some of which die at random: no lease leaks, no state is shared."""

import random
import statistics
import threading
import time

import httpx
import pytest

from stackloom.core.chat import Message
from stackloom.plugins.environment.domain_graph.config import DomainGraphConfig
from tests.sdk.worlds.conftest import serving

CLIENTS, ATTEMPTS, DEATHS = 64, 4, 0.3


@pytest.mark.faults
def test_many_clients_with_random_deaths(capsys):
    environment = DomainGraphConfig(tools=6, low=1, high=2).build()
    tasks = environment.tasks("train", 8)
    plays = [[m for m in environment.demonstration(task) if m.role == "assistant"] for task in tasks]
    seconds, failures, died = [], [], []

    def client(number: int) -> None:
        draw = random.Random(number)
        try:
            with httpx.Client(base_url=url, timeout=60) as http:
                for _ in range(ATTEMPTS):
                    place = draw.randrange(len(tasks))
                    opened = http.post("/leases", json={"split": "train", "index": place})
                    while opened.status_code == 429:
                        time.sleep(0.05)
                        opened = http.post("/leases", json={"split": "train", "index": place})
                    lease, said = opened.json()["lease"], []
                    for message in plays[place]:
                        said.append(message)
                        for call in message.tool_calls:
                            if draw.random() < DEATHS / 4:
                                died.append(number)
                                break
                            begun = time.perf_counter()
                            answer = http.post(
                                f"/leases/{lease}/calls", json={"name": call.name, "arguments": dict(call.arguments)}
                            ).json()
                            seconds.append(time.perf_counter() - begun)
                            said.append(Message("tool", answer["text"], tool_call_id=call.id, name=call.name))
                        else:
                            continue
                        break
                    else:
                        body = {"messages": [each.to_openai() for each in said]}
                        verdict = http.post(f"/leases/{lease}/verdict", json=body).json()
                        if verdict["value"] != 1.0:  # another's changes would show in the world's digest
                            failures.append((place, verdict))
                        else:
                            answers.setdefault(place, set()).add(verdict["answer"])
                        http.delete(f"/leases/{lease}")
        except Exception as cause:  # noqa: BLE001 - a thread's own failure is a failure of the test
            failures.append(cause)

    answers: dict[int, set[str]] = {}
    with serving(environment, most=48, seconds=1.0) as (leases, url):
        threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        deadline = time.monotonic() + 10
        while leases.held and time.monotonic() < deadline:
            time.sleep(0.1)
        counts = leases.held, leases.opened, leases.ended + leases.expired
    assert failures == []
    assert all(len(found) == 1 for found in answers.values())  # one digest of the world per task
    assert counts == (0, CLIENTS * ATTEMPTS, CLIENTS * ATTEMPTS)
    assert died
    with capsys.disabled():
        slow = sorted(seconds)[int(0.99 * len(seconds))]
        print(
            f"\n{len(seconds)} calls of {CLIENTS} clients, {len(died)} attempts abandoned: "
            f"median {1000 * statistics.median(seconds):.1f} ms, p99 {1000 * slow:.1f} ms"
        )
