"""Whether the profiles that a recipe's methods read were made of the served model."""

from headway.engine.errors import ConfigError
from headway.engine.loaded import LoadedModel
from headway.engine.methods.kind import DECODE
from headway.engine.profile import artefact
from headway.engine.recipe import RecipeConfig


def check_profiles(config: RecipeConfig, loaded: LoadedModel) -> None:
    """Refuse a profile of another model.

    Raises:
        ConfigError: names the setting and what differs.
    """
    for setting, path in DECODE.make(config.decode).profiles().items():
        try:
            artefact.load(path).check(loaded)
        except ConfigError as error:
            raise ConfigError(f"recipe.decode.{setting}: {error}") from error
