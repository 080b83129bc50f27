"""The pair store: what a pair is, on disk and in flight.

Nothing here needs torch; batches for training are in `shards.stream`.
"""

from shards.errors import Failed, Refused
from shards.manifest import Manifest, View, create_dataset
from shards.noise import gaussian_noise
from shards.order import Order
from shards.reader import read_shard
from shards.record import SCHEMA_VERSION, Pairs, PairSpec, label
from shards.rows import ManifestRow, shard_name
from shards.verify import Finding, verify
from shards.writer import commit_shard, shard_bytes

__all__ = [
    "SCHEMA_VERSION",
    "Failed",
    "Finding",
    "Manifest",
    "ManifestRow",
    "Order",
    "PairSpec",
    "Pairs",
    "Refused",
    "View",
    "commit_shard",
    "create_dataset",
    "gaussian_noise",
    "label",
    "read_shard",
    "shard_bytes",
    "shard_name",
    "verify",
]
