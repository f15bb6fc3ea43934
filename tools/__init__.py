"""What sets the course up, starts it, and builds what it hands out; not part of the package.

- `environment`, `preflight`, `lab`, `again`: `.venv` and what is looked at before, JupyterLab, what to type
- `lock`: exact versions
- `notebooks`, `labs`, `pictures`: chapters and labs from their text
- `chinese`, `chinese_books`, `chinese_checks`, `glossary`: the Chinese edition
- `slides`, `slide_sizes`, `handouts`, `exported_pages`, `page_assets`: chapters as pages
- `browser`: the one that prints and photographs
- `readme`, `screenshots`: the README's table and pictures
"""
