from tests.gcs_server import gcs, gcs_server

__all__ = ["gcs", "gcs_server"]
