"""Channel and server settings, set on purpose and in one place.

Messages: the largest is a prompt (4 bytes a token at most) with its block hashes, or the prompt
logprobs of one; 64 MiB holds a million-token prompt and refuses nonsense. KV bytes never pass here.

Keepalive: a peer that vanished without a FIN, or was stopped, is noticed within 10 s, on idle connections
too; gRPC's own threads answer, however busy the process is. A ping every 5 s costs nothing measurable.
"""

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
KEEPALIVE_SECONDS = 5
KEEPALIVE_TIMEOUT_SECONDS = 5

_SHARED: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1000),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_SECONDS * 1000),
    # What gRPC 1.85 obeys for the answer to a keepalive ping; by default it waits for a minute.
    ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_SECONDS * 1000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)

SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    *_SHARED,
    # A port that another process holds must fail at start, not be shared in silence.
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_SECONDS * 500),
)

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    *_SHARED,
    # Each channel has its own connection: streams of different links do not share a window.
    ("grpc.use_local_subchannel_pool", 1),
    # After a peer's restart, reconnect in tenths of a second rather than in gRPC's default 20.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
