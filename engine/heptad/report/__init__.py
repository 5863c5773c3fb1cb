"""The page that shows a run: what is drawn of a log, and the file that holds it. No torch; Bokeh in `figures` alone."""
