"""The report on a job: one self-contained page (docs/report.md).

``document.document()`` makes plain data of a verdict and of what was learned of the ranks;
``redact.redact()`` takes names out of that; ``page.page()`` makes HTML of it. All of them are pure.
"""
