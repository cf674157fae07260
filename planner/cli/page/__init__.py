"""One self-contained HTML page of an answer or of plans; no network, no script.

view       the content of the page, from plans
charts     SVG charts as text
write      fills the template (jinja2, with escaping) and writes the file
"""
