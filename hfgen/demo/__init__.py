"""A page in the browser for one pipeline, on this machine or as a Space of the Hub."""
