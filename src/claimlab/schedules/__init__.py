"""Reports on a calendar: `cron` says when, `plan` reads schedules.toml, `firing` makes one report with retries, `service` is the
process that waits, `calendar` what the ledger knows of it all, `exporting` writes the same for other schedulers.
"""
