"""The whole stack on one machine without Docker: `python -m deploy.local up | down | status | …`, or `make up`."""
