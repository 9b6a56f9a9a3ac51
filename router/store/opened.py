"""The store that the settings mean."""

from ccr.settings import StoreSettings
from router.store.embedded import EmbeddedStore
from router.store.store import Store


def opened(settings: StoreSettings) -> Store | None:
    """The store, or ``None`` where none is configured. A Redis that is down is no reason not to start.

    Raises:
        StoreDownError: if the directory cannot be used.
    """
    if settings.redis_url is not None:
        from router.store.redis_store import RedisStore  # noqa: PLC0415 - a tenth of a second that most never need

        return RedisStore(
            settings.redis_url.get_secret_value(), settings.prefix, settings.timeout_s, settings.stream_length
        )
    if settings.directory is not None:
        return EmbeddedStore(settings.directory, settings.stream_bytes)
    return None
