"""Many runs of one study: a plan of settings, an engine that runs them, and what they say of the claims together.

`plan` makes settings of grids and samples, `book` keeps them in the ledger, `child` is one run in a process of its own, `local`
and `cluster` are engines, `conduct` drives a plan to its end, `results` reads it. `sensitivity` and `tuning` are two uses; `decided` and
`looks` add seeds to one setting until its verdicts fall.
"""
