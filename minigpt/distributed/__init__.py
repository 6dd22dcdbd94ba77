"""distributed: mesh and multihost."""
