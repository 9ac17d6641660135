"""Scrapes a running server with Prometheus' own Python parsers, once for each line on standard input, and prints sums as JSON.

Each scrape is read in both formats. What must hold in every scrape is checked here: every family has HELP and one TYPE, no series is there twice, buckets
are cumulative and end in the count, nothing that only counts goes back, and no connection is missing from the books.
"""

import json
import sys
import urllib.request

from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics

OPEN_METRICS = "application/openmetrics-text;version=1.0.0"


def get(url, accept):
    request = urllib.request.Request(url, headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=30) as response:
        return response.headers["Content-Type"], response.read().decode()


def series(sample):
    return sample.name, tuple(sorted(sample.labels.items()))


def read(families):
    """All samples by series, and the type of each family."""
    samples, types = {}, {}
    for family in families:
        assert family.documentation.endswith("."), f"{family.name} has no HELP"
        assert family.name not in types, f"{family.name} is there twice"
        assert family.type in ("counter", "gauge", "histogram"), f"{family.name} is {family.type}"
        types[family.name] = family.type
        assert family.samples, f"{family.name} has no samples"
        for sample in family.samples:
            assert series(sample) not in samples, f"{series(sample)} is there twice"
            samples[series(sample)] = sample.value
        if family.type == "histogram":
            check_histogram(family)
    return samples, types


def check_histogram(family):
    buckets, counts = {}, {}
    for sample in family.samples:
        labels = dict(sample.labels)
        bound = labels.pop("le", None)
        key = tuple(sorted(labels.items()))
        if sample.name.endswith("_bucket"):
            buckets.setdefault(key, []).append((float(bound), sample.value))
        elif sample.name.endswith("_count"):
            counts[key] = sample.value
    assert buckets.keys() == counts.keys(), family.name
    for key, values in buckets.items():
        bounds, cumulative = zip(*values)
        assert list(bounds) == sorted(set(bounds)) and bounds[-1] == float("inf"), f"{family.name} {bounds}"
        assert list(cumulative) == sorted(cumulative), f"{family.name}{key} is not cumulative"
        assert cumulative[-1] == counts[key], f"{family.name}{key}: {cumulative[-1]} in buckets, {counts[key]} counted"


def total(samples, name, **labels):
    wanted = set(labels.items())
    return sum(value for (n, have), value in samples.items() if n == name and wanted <= set(have))


def only_counts(name, types):
    if types.get(name.removesuffix("_total")) == "counter":
        return True
    return any(types.get(name.removesuffix(suffix)) == "histogram" for suffix in ("_bucket", "_count", "_sum"))


def main():
    url = sys.argv[1]
    before = {}
    for _line in sys.stdin:
        content_type, text = get(url, "*/*")
        assert content_type.startswith("text/plain; version=0.0.4"), content_type
        plain, plain_types = read(parser.text_string_to_metric_families(text))
        content_type, text = get(url, OPEN_METRICS)
        assert content_type.startswith(OPEN_METRICS.replace(";", "; ")), content_type
        samples, types = read(openmetrics.text_string_to_metric_families(text))
        assert types == plain_types and samples.keys() == plain.keys(), "the formats differ"
        for earlier in (before, plain):
            for key, value in earlier.items():
                assert key in samples, f"{key} has vanished"
                assert not only_counts(key[0], types) or samples[key] >= value, f"{key} went back from {value}"
        before = samples
        opened = total(samples, "websocket_connections_opened_total")
        active = total(samples, "active_websocket_connections")
        closed = total(samples, "websocket_connections_closed_total")
        assert opened == active + closed, f"{opened} opened, {active} active, {closed} closed"
        sums = {"opened": opened, "active": active, "closed": closed}
        for name in ("websocket_upgrades_total", "websocket_published_total", "websocket_deliveries_matched_total",
                     "websocket_deliveries_queued_total", "websocket_dropped_total", "websocket_refused_total",
                     "websocket_connection_duration_seconds_count", "websocket_handshake_duration_seconds_count",
                     "websocket_receipt_duration_seconds_count", "websocket_outbound_queue_frames_count",
                     "websocket_outbound_queue_bytes_count", "tidewheel_turn_duration_seconds_count",
                     "tidewheel_turn_events_sum", "tidewheel_turns_total", "tidewheel_sends_total",
                     "tidewheel_handler_duration_seconds_count", "tidewheel_shard_cpu_seconds_total",
                     "tidewheel_subscriptions", "tidewheel_frame_bytes", "tidewheel_inbound_bytes",
                     "websocket_connections_max"):
            sums[name] = total(samples, name)
        sums["messages_in"] = total(samples, "websocket_messages_total", direction="in")
        sums["parked"] = total(samples, "tidewheel_handler_duration_seconds_count", mode="parked")
        sums["unknown"] = total(samples, "websocket_errors_total", code="unknown_message")
        print(json.dumps(sums), flush=True)


main()
