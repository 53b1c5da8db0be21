"""A page in the browser to talk to a model and to look inside it: `chat --web`.

`token_facts` says what each token was beside its rivals, `inspection` what heads and layers did, `protocol` reads and
writes requests in OpenAI's form, `server` answers them behind `request_guard`. `worker` lets them wait for the model,
which continues several side by side (`row_batch`). The page itself is page.html, page.css and page.js. Starlette and
uvicorn, no part of the core, carry it: `pip install minillama[web]`.
"""

FLOOR = 6  # imports from its own floor or a lower one
