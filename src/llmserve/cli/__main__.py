from llmserve.cli.app import main

raise SystemExit(main())
