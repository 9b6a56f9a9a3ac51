"""The seam between the processes of one deployment, in Redis or in a directory; called from threads, never by a request."""
