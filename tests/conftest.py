from tests.tiny_runs import world

__all__ = ["world"]
