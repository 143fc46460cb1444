"""Reports over many studies: what is missing or stale is run, the claims are judged, and a folder of pages is written.

`making` is the whole from top to bottom; `planning` says what runs and why, `running` runs it, `document` holds what the report
says (its JSON), `writing` lays the files down in one go, `mail` sends it.
"""
