"""Tasks of download."""

from steelyard.download import agree_on, check_plan, fetch_file, fetch_small_files, keep_papers, look_ahead, look_at_held, share_views
from tasks.twins import twin

twin(agree_on, "agree on a lock", lambda site, model: f"agree on {model}", "download")
twin(look_at_held, "look at what is held", lambda site, model, locked: f"look at what is held of {model}", "download")
twin(check_plan, "check the plan", lambda site, model, locked, todo: f"check room for {model} · {len(todo)} to fetch", "download")
twin(
    look_ahead,
    "look into the headers",
    lambda site, model, locked, files: f"look into the headers of {model} · {len(files)} file{'' if len(files) == 1 else 's'}",
    "download",
)
twin(fetch_file, "fetch a file", lambda site, model, locked, file, ahead: f"fetch {model} · {file.path}", "download")
twin(
    fetch_small_files,
    "fetch small files",
    lambda site, model, locked, files: f"fetch {model} · {len(files)} small file{'s' if len(files) > 1 else ''}",
    "download",
)
twin(
    share_views, "share with the hub cache", lambda site, model, locked, entries, cached=(): f"share {model} with the hub cache", "download"
)
twin(keep_papers, "keep the papers", lambda site, model, locked: f"keep licence and card of {model}", "download")
