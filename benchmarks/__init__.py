"""Speed of the router, always beside something else measured in the same run."""
