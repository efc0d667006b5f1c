"""Service: what every route works with."""

import time
from typing import Annotated

from fastapi import Depends, Request

from headway.engine.client import EngineClient
from headway.engine.offers import Offers
from headway.server.drain import Drain
from headway.server.errors import ApiError
from headway.server.metrics import Metrics
from headway.server.settings import Settings
from headway.server.tokenizer import Tokenizer


class Service:
    """One model behind one server."""

    def __init__(self, settings: Settings, engine: EngineClient, tokenizer: Tokenizer) -> None:
        self.settings = settings
        self.engine = engine
        self.tokenizer = tokenizer
        self.model = settings.engine.model.served_name or settings.engine.model.name
        self.created = int(time.time())
        self.metrics = Metrics(engine, self.model)
        self.drain = Drain()
        self.offers = Offers(settings.engine.recipe)

    def check_model(self, name: str | None) -> None:
        """Refuse names of models that are not served.

        Raises:
            ApiError: 404.
        """
        if name is not None and name != self.model:
            raise ApiError(
                404,
                f"the model {name[:100]!r} is not served here; this is {self.model!r}",
                param="model",
                code="model_not_found",
            )


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


ServiceOf = Annotated[Service, Depends(_service)]
