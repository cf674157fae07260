"""The service behind ``budgetplan serve``: questions over HTTP, answers as ``recommend --json``.

    questions   a question, its limits, and the id that equal questions share
    jobs        runs questions in processes of their own and keeps their answers
    app         the HTTP routes
    access      host allow-list, token and size limit of requests

No path comes from a request: files lie under one root folder, in a folder named by the id.
"""
