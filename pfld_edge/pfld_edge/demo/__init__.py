"""The browser demo: a static folder that finds landmarks in a browser, and what serves it."""
